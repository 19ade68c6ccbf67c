"""What the bridge can do without: take what you need."""
