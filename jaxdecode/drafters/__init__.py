"""Who suggests tokens; one file each."""
