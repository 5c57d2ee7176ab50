"""From documents to the blocks of tokens that a language model trains on; `prepare` and `PreparedText` are the ends."""
