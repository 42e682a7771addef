"""What a decoding run needs of hardware that is not here: memory, bytes, time, advice."""
