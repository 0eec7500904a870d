"""What a generation costs in the paper's currency: bytes of parameters read (Fast BLT §4.2, Eq. 8)."""


def gigabytes(decoder_nfes, encoder_global_nfes, decoder_parameters, encoder_global_parameters, bits=16):
    """Eq. 8: every forward pass (NFE) reads each parameter of its part once, at `bits` per parameter -> GB (1e9 bytes).

    The n-gram tables are not among the parameters: a pass reads a few of their rows, looked up one by one.
    """
    return bits / 8 * (decoder_nfes * decoder_parameters + encoder_global_nfes * encoder_global_parameters) / 1e9


def generation_gigabytes(counters, model, patcher, bits=16):
    """-> (GB by Eq. 8, GB with the patcher's passes, which the paper leaves out) for the Counters of one generation."""
    sizes = model.sizes()
    paper = gigabytes(counters.decoder, counters.encoder_global, sizes["decoder"], sizes["encoder"] + sizes["global"], bits)
    entropy_parameters = sum(p.numel() for p in patcher.parameters())
    return paper, paper + bits / 8 * counters.entropy * entropy_parameters / 1e9
