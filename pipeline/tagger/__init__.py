"""The flair tagger: loading one, and training the small one of the demo."""
