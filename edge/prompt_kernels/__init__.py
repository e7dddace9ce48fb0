"""Products of quantised weights with many columns, in C++, which llama.cpp's CPU backend computes prompts with."""
