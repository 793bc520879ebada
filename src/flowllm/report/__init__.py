"""Report of a run: tables, figures and the page."""
