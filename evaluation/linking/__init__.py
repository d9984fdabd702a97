"""Entity links in texts against labels."""
