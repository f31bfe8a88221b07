"""Components in pictures: what each reads and writes, where and how often it fires, on which samples, and what for."""
