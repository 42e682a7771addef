"""The loop and the types that everything meets in: propose, verify, commit."""
