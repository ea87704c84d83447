"""Models that come with zo2."""
