"""A Hub on the loopback address, for tests: real git repositories, a sha256 object store, faults.

Proves that a client and a server that both keep to the protocol of huggingface_hub 2.4.0 get on,
also when requests fail; says nothing about how hf.co itself behaves. docs/publishing.md lists both.
"""
