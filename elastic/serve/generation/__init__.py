"""How a MatLM run is served: tokens as fast as a request asks, from the best submodel that can keep that up."""
