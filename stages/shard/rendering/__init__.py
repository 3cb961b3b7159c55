"""A row as a person meant it -> pieces of text, with a mark: trained or not. All knowledge of templates is here."""
