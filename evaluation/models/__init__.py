"""What is measured: an encoder or ready embeddings, and how pictures and texts become embeddings."""
