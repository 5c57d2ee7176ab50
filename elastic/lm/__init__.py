"""MatLM: a nested language model that drafts for itself."""
