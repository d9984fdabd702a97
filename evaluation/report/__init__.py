"""Results for people: figures, charts and the HTML page."""
