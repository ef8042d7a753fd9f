"""What was found, for people: tables, pictures, model cards."""
