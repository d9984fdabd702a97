"""Wikipedia articles: their text and links, what a link's words mean, and the excerpt that gensim carries."""
