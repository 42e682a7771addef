"""Who checks proposals, and with what law; one file each."""
