"""Whether this installation works, and if not, what exactly is wrong and what mends it.

It starts on the standard library alone. `catalogue` knows every check and problem; `checks`
decide from facts, which `probes` find out in processes of their own; `runner` asks them.
"""
