"""What `scripts/fuzz.py` is made of: hostile files and their readers, commands that are killed, full disks, threads."""
