"""What runs on the device: packs, the runtime, the command line. Imports no other folder and never torch."""
