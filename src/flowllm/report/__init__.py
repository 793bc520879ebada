"""Tables, figures and the page of the report."""
