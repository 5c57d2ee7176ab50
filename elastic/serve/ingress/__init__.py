"""Between the network and the replicas: a server's ports, HAProxy, TLS, and the certificates it starts with."""
