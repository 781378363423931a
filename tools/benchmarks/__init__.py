"""The benchmark's cases, a module a method, and how they are measured. A module lists its cases in ``CASES``."""
