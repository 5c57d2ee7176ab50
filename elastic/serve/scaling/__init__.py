"""How many replicas serve: what each of them reports, what follows from it, and how Ray Serve is told."""
