"""Between the network and the replicas: a server's ports, TLS, and the certificates it starts with."""
