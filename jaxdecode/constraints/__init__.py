"""What a text must look like: JSON schemas, regular expressions and grammars."""
