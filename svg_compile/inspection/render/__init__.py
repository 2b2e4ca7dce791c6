"""A report as text, Markdown, JSON, HTML and in a terminal."""
