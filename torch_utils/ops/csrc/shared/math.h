// Functions of the decoder and the marcher on one float, or on a short vector of them: the text is the same for C++ and CUDA.
// Included inside the namespace that uses them, after OMNI_MATH (how functions are declared) is defined.

// log(1 + u) for u in [0, 1], relative error below 2e-7: Chebyshev fit of log(1 + u) / u.
template <typename V>
OMNI_MATH V log1p_unit(V u) {
    V p = u * 0.005253457796061413f + -0.029588507389053133f;
    p = p * u + 0.07836166801253061f;
    p = p * u + -0.1367476970500946f;
    p = p * u + 0.19111431080335567f;
    p = p * u + -0.24844369892403634f;
    p = p * u + 0.3331927134249213f;
    p = p * u + -0.49999501516786526f;
    p = p * u + 0.9999999705406568f;
    return p * u;
}
