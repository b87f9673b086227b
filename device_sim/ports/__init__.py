"""The agent for real serial devices: several ports, framed, parsed, kept on disk and answered, from one TOML file."""
