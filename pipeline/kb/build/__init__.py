"""What makes a knowledge base; annotating reads none of it."""
