"""MatLM: nested language models, from text to generated tokens."""
