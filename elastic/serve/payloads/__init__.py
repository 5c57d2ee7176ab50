"""What a request carries in and an answer carries out: texts, images, images by URL, embeddings."""
