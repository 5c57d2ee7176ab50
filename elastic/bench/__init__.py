"""Load generators: what a running server answers, how soon and how well, when every request counts."""
