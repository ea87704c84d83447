"""What comes of a run, for people (table, page) and for programs (JSON, JUnit)."""
