"""How good a trained model is: retrieval metrics, protocols, baselines and the report."""
