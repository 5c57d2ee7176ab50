"""Puts another run into a running server without failing a request: published once, followed by every replica."""
