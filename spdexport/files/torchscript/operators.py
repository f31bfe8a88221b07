"""The operators that a TorchScript archive may use without being trusted.

It is a list of what may be used, so that an operator of a later torch is refused until somebody has looked at it. It
was made from all operators that torch 2.13 registers (``torch._C._jit_get_all_schemas()``), by leaving out:

- what acts on something else than its operands and its result: files (``save``, ``from_file``), the terminal
  (``_print``, ``prim::Print``, ``warn``), other processes (``prim::rpc_*``, ``to_here``, ``owner``, ``c10d``,
  ``symm_mem``), Python (``prim::PythonOp``), the state of the process (``manual_seed``, profilers,
  caches of plans, pinned memory);
- what takes another's storage or trusts its operands to be well-formed (``set_``, ``set_data``, ``segment_reduce``,
  ``_unsafe_index``, ``_reshape_alias``, ``_sparse_coo_tensor_unsafe``);
- gradients (``backward`` and all that have it in their name): a model that is read computes none;
- every name that begins with one underscore, other than those that torch itself writes when it traces or scripts a
  public function (``_convolution``, ``_weight_norm``, ``_pack_padded_sequence``).

What remains has no effect but on tensors. ``set_grad_enabled`` remains, although it changes a setting of the thread:
``torch.no_grad`` uses it, and whoever loads and runs an archive restores the setting. ``warn``, which many of torch's
own functions use, is taken out of the code before torch sees it (``text``).
"""

from __future__ import annotations

_ATEN = """
abs abs_ absolute absolute_ acos acos_ acosh acosh_ adaptive_avg_pool1d _adaptive_avg_pool2d adaptive_avg_pool2d
_adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add add_
_add_relu _add_relu_ addbmm addbmm_ addcdiv addcdiv_ addcmul addcmul_ addmm addmm_ _addmm_activation addmv addmv_
addr addr_ adjoint affine_grid_generator alias alias_copy all allclose alpha_dropout alpha_dropout_ amax amin
_aminmax aminmax __and__ angle any append arange arccos arccos_ arccosh arccosh_ arcsin arcsin_ arcsinh arcsinh_
arctan arctan_ arctan2 arctan2_ arctanh arctanh_ argmax argmin argsort argwhere as_strided as_strided_
as_strided_copy as_strided_scatter as_tensor asin asin_ asinh asinh_ _assert_async _assert_scalar
_assert_tensor_metadata atan atan_ atan2 atan2_ atanh atanh_ atleast_1d atleast_2d atleast_3d
_autocast_to_full_precision _autocast_to_reduced_precision avg_pool1d avg_pool2d avg_pool3d baddbmm baddbmm_
bartlett_window batch_norm batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts
_batch_norm_impl_index batch_norm_stats batch_norm_update_stats bernoulli bernoulli_ bilinear bin
binary_cross_entropy binary_cross_entropy_with_logits bincount binomial bitwise_and bitwise_and_ bitwise_left_shift
bitwise_left_shift_ bitwise_not bitwise_not_ bitwise_or bitwise_or_ bitwise_right_shift bitwise_right_shift_
bitwise_xor bitwise_xor_ blackman_window block_diag bmm Bool broadcast_shapes broadcast_tensors broadcast_to
bucketize can_cast capitalize cartesian_prod _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int
_cast_Long _cast_Short cat cauchy cauchy_ ccol_indices ccol_indices_copy cdist _cdist_forward ceil ceil_ celu celu_
center chain_matmul chalf channel_shuffle cholesky cholesky_inverse cholesky_solve choose_qparams_optimized
_choose_qparams_per_tensor chr chunk clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clear clip clip_ clone
coalesce col2im col_indices col_indices_copy column_stack combinations Complex complex ComplexImplicit concat
concatenate _conj conj _conj_copy _conj_physical conj_physical conj_physical_ constant_pad_nd __contains__
contiguous conv1d conv2d conv3d conv_depthwise3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d
_convolution convolution _convolution_mode convolution_overrideable copy copy_ copy_sparse_to_sparse copysign
copysign_ corrcoef cos cos_ cosh cosh_ cosine_embedding_loss cosine_similarity count count_nonzero cov cpu cross
cross_entropy_loss crow_indices crow_indices_copy _ctc_loss ctc_loss cuda cudnn_affine_grid_generator
cudnn_batch_norm cudnn_convolution cudnn_convolution_add_relu cudnn_convolution_relu cudnn_convolution_transpose
cudnn_grid_sampler cudnn_is_acceptable cummax cummin cumprod cumprod_ cumsum cumsum_ cumulative_trapezoid data
deg2rad deg2rad_ degrees Delete dense_dim dequantize __derive_index det detach detach_ detach_copy device diag
diag_embed diagflat diagonal diagonal_copy diagonal_scatter dict diff digamma digamma_ dim _dim_arange dist div div_
divide divide_ divmod dot dropout dropout_ dsplit dstack einsum element_size elu elu_ embedding _embedding_bag
embedding_bag _embedding_bag_forward_only embedding_renorm embedding_renorm_ empty _empty_affine_quantized
empty_like _empty_per_channel_affine_quantized empty_permuted empty_quantized empty_strided endswith eq eq_ equal
erf erf_ erfc erfc_ erfinv erfinv_ _euclidean_dist exp exp_ exp2 exp2_ expand expand_as expand_copy expandtabs expm1
expm1_ exponential exponential_ extend eye fabs factorial _fake_quantize_learnable_per_channel_affine
_fake_quantize_learnable_per_tensor_affine fake_quantize_per_channel_affine
fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask
_fake_quantize_per_tensor_affine_cachemask_tensor_qparams fbgemm_linear_fp16_weight
fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight fbgemm_linear_int8_weight_fp32_activation
fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix feature_alpha_dropout
feature_alpha_dropout_ feature_dropout feature_dropout_ _fft_c2c _fft_c2r fft_fft fft_fft2 fft_fftfreq fft_fftn
fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn
fft_irfft fft_irfft2 fft_irfftn _fft_r2c fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fill_ fill_diagonal_ find
fix fix_ flatten flatten_dense_tensors flip fliplr flipud Float float_power float_power_ FloatImplicit floor floor_
floor_divide floor_divide_ floordiv fmax fmin fmod fmod_ format frac frac_ fractional_max_pool2d
fractional_max_pool3d frexp frobenius_norm full full_like _functional_assert_async _functional_assert_scalar
_functional_sym_constrain_range _functional_sym_constrain_range_for_size fused_moving_avg_obs_fake_quant
_fused_rms_norm _fused_sdp_choice gamma gather gcd gcd_ ge ge_ gelu gelu_ geometric geometric_ geqrf ger get
get_autocast_dtype _get_cpu_capability get_device _get_tracing_state __getitem__ glu glu_jvp grad _grad_sum_to_size
gradient greater greater_ greater_equal greater_equal_ grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru
gru_cell gt gt_ hamming_window hann_window hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
hardtanh_ has_torch_function hash hash_tensor heaviside heaviside_ hex hinge_embedding_loss histc histogram
histogramdd hsplit hspmm hstack huber_loss hypot hypot_ i0 i0_ __iand__ igamma igamma_ igammac igammac_ __ilshift__
im2col imag index index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_
index_reduce index_reduce_ index_select indices indices_copy _infer_size inner insert instance_norm Int _int_mm
int_repr __interpolate IntImplicit inverse __ior__ __irshift__ __is__ _is_all_true _is_any_true
is_autocast_cpu_enabled is_autocast_enabled is_coalesced is_complex is_conj is_contiguous is_distributed
is_floating_point is_grad_enabled is_inference is_leaf is_neg is_non_overlapping_and_dense is_nonzero is_same_size
is_scripting is_set_to is_signed is_strides_like_format _is_zerotensor isalnum isalpha isclose isdecimal isdigit
isfinite isidentifier isin isinf islower isnan isneginf __isnot__ isnumeric isposinf isprintable isreal isspace
istft istitle isupper item items __ixor__ join kaiser_window keys kl_div kron kthvalue l1_loss layer_norm lcm lcm_
ldexp ldexp_ le le_ leaky_relu leaky_relu_ len lerp lerp_ less less_ less_equal less_equal_ lgamma lgamma_ lift
lift_fresh lift_fresh_copy linalg__powsum linalg_cholesky linalg_cholesky_ex linalg_cond linalg_cross _linalg_det
linalg_det linalg_diagonal linalg_eig _linalg_eigh linalg_eigh linalg_eigvals linalg_eigvalsh
linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex linalg_ldl_solve
linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve linalg_matmul linalg_matrix_exp
linalg_matrix_norm linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr
_linalg_slogdet linalg_slogdet linalg_solve _linalg_solve_ex linalg_solve_ex linalg_solve_triangular _linalg_svd
linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot linalg_vector_norm linear
linspace list _list_to_tensor ljust _local_scalar_dense log log_ log10 log10_ log1p log1p_ log2 log2_ log_normal
log_normal_ log_sigmoid log_sigmoid_forward _log_softmax log_softmax logaddexp logaddexp2 _logcumsumexp logcumsumexp
logdet logical_and logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor logical_xor_ logit
logit_ logspace logsumexp lower __lshift__ lstm lstm_cell lstrip lt lt_ lu_solve lu_unpack
_make_per_channel_quantized_tensor _make_per_tensor_quantized_tensor margin_ranking_loss masked_fill masked_fill_
masked_scatter masked_scatter_ masked_select _masked_softmax mathremainder matmul matrix_exp matrix_H matrix_power
max max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
max_unpool2d max_unpool3d maximum mean median meshgrid mH min minimum miopen_batch_norm miopen_convolution
miopen_convolution_add_relu miopen_convolution_relu miopen_convolution_transpose miopen_ctc_loss
miopen_depthwise_convolution miopen_rnn mish mish_ mkldnn_adaptive_avg_pool2d mkldnn_convolution mkldnn_linear
mkldnn_max_pool2d mkldnn_max_pool3d mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight mkldnn_rnn_layer mm
mode modf moveaxis movedim mse_loss msort mT mul mul_ multi_margin_loss multilabel_margin_loss
multilabel_margin_loss_forward multinomial multiply multiply_ mv mvlgamma mvlgamma_ nan_to_num nan_to_num_ nanmean
nanmedian nanquantile nansum narrow narrow_copy native_batch_norm _native_batch_norm_legit
_native_batch_norm_legit_functional _native_batch_norm_legit_no_training native_channel_shuffle native_dropout
native_group_norm native_layer_norm _native_multi_head_attention native_norm ne ne_ neg neg_ _neg_view negative
negative_ _nested_from_padded _nested_tensor_from_mask _nested_tensor_from_mask_left_aligned
_nested_tensor_from_tensor_list _nested_tensor_size nested_to_padded_tensor new_empty new_empty_strided new_full
new_ones new_zeros nextafter nextafter_ nll_loss nll_loss2d nll_loss2d_forward nll_loss_forward nll_loss_nd
_nnpack_available _nnpack_spatial_convolution _no_grad_embedding_renorm_ _no_grad_fill_ _no_grad_normal_
_no_grad_uniform_ _no_grad_zero_ nonzero nonzero_numpy nonzero_static norm norm_except_dim normal normal_
normal_functional __not__ not_equal not_equal_ nuclear_norm numel numpy_T oct one_hot ones ones_like __or__ ord
orgqr ormqr outer output_nr _pack_padded_sequence _pack_sequence pad _pad_circular _pad_enum _pad_packed_sequence
pad_sequence pairwise_distance partition pdist _pdist_forward percentFormat permute permute_copy pinverse
pixel_shuffle pixel_unshuffle poisson poisson_nll_loss polar polygamma polygamma_ pop popitem positive pow pow_
prelu _prelu_kernel prod promote_types put put_ q_per_channel_axis q_per_channel_scales q_per_channel_zero_points
q_scale q_zero_point qr qscheme quantile quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic
quantized_batch_norm quantized_gru quantized_gru_cell quantized_lstm quantized_lstm_cell quantized_max_pool1d
quantized_max_pool2d quantized_max_pool3d quantized_rnn_relu_cell quantized_rnn_tanh_cell rad2deg rad2deg_ radians
rand rand_like randint randint_like randn randn_like random random_ randperm range __range_length ravel real
reciprocal reciprocal_ reflection_pad1d reflection_pad2d reflection_pad3d relu relu_ relu6 relu6_ remainder
remainder_ remove renorm renorm_ repeat repeat_interleave replace replication_pad1d replication_pad2d
replication_pad3d requires_grad_ reshape reshape_as _reshape_copy resize resize_ resize_as resize_as_
resize_as_sparse resolve_conj resolve_neg result_type retains_grad reverse rfind rindex rjust rms_norm rnn_relu
rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round round_ __round_to_zero_floordiv row_indices row_indices_copy
row_stack rpartition rrelu rrelu_ rrelu_with_noise rrelu_with_noise_ rrelu_with_noise_functional __rshift__ rsplit
rsqrt rsqrt_ rstrip rsub _safe_softmax _sample_dirichlet _saturate_weight_to_fp16 scalar_tensor ScalarImplicit
scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention
_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu scatter scatter_ scatter_add
scatter_add_ scatter_reduce scatter_reduce_ searchsorted select select_copy select_scatter selu selu_
set_grad_enabled _set_item setdefault sgn sgn_ _shape_as_tensor sigmoid sigmoid_ sign sign_ signbit silu silu_ sin
sin_ sinc sinc_ sinh sinh_ Size size _size_if_not_equal slice slice_copy slice_scatter slogdet slow_conv3d
slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d smm
smooth_l1_loss soft_margin_loss _softmax softmax softplus softshrink sort sorted sparse_bsc_tensor sparse_bsr_tensor
sparse_compressed_tensor sparse_coo_tensor sparse_csc_tensor sparse_csr_tensor sparse_dim _sparse_log_softmax
sparse_mask _sparse_mm sparse_resize sparse_resize_ sparse_resize_and_clear sparse_sampled_addmm _sparse_softmax
_sparse_sum special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv
special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln
special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e special_i1 special_i1e
special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p special_log_ndtr special_log_softmax
special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri special_polygamma special_psi
special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
special_shifted_chebyshev_polynomial_w special_sinc special_softmax special_spherical_bessel_j0 special_xlog1py
special_xlogy special_zeta split split_copy split_with_sizes split_with_sizes_copy splitlines sqrt sqrt_ square
square_ squeeze squeeze_ squeeze_copy sspaddmm _stack stack _standard_gamma startswith std std_mean stft
storage_offset str stride strip sub sub_ subtract subtract_ sum sum_to_size svd swapaxes swapaxes_ swapcase swapdims
swapdims_ sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset
sym_stride t t_ t_copy take take_along_dim tan tan_ tanh tanh_ tensor tensor_split _tensor_to_list tensordot
thnn_conv2d threshold threshold_ tile title to _to_copy _to_cpu _to_dense to_dense to_mkldnn to_padded_tensor
_to_sparse to_sparse to_sparse_bsc to_sparse_bsr to_sparse_csc to_sparse_csr topk trace _transform_bias_rescale_qkv
_transformer_encoder_layer_fwd transpose transpose_ transpose_copy trapezoid trapz triangular_solve tril tril_
tril_indices _trilinear triplet_margin_loss triu triu_ triu_indices true_divide true_divide_ trunc trunc_ type_as
unbind unbind_copy unflatten unflatten_dense_tensors unfold unfold_copy uniform uniform_ _unique _unique2
unique_consecutive unique_dim unique_dim_consecutive unsafe_chunk unsafe_split unsafe_split_with_sizes _unsafe_view
unsqueeze unsqueeze_ unsqueeze_copy _unwrap_optional update upper __upsample upsample_bicubic2d
_upsample_bicubic2d_aa __upsample_bilinear upsample_bilinear2d _upsample_bilinear2d_aa _upsample_lanczos2d_aa
upsample_linear1d __upsample_nearest upsample_nearest1d upsample_nearest2d upsample_nearest3d
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_trilinear3d values
values_copy vander var var_mean vdot _version view view_as view_as_complex view_as_complex_copy view_as_real
view_as_real_copy view_copy vsplit vstack wait _weight_norm _weight_norm_interface where xlogy xlogy_ __xor__
zero zero_ zeros zeros_like zfill
"""

_PRIM = """
abs awaitable_nowait awaitable_wait BroadcastMKLDNNTensors BroadcastSizes ChunkSizes ConstantChunk
ConstantMKLDNNTensor data device dtype EnumName EnumValue grad id IfThenElse index is_cpu is_cuda is_ipu is_maia
is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr is_vulkan is_xla is_xpu itemsize
layout max min mkldnn_convolution MKLDNNClamp MKLDNNClamp_ MKLDNNHardSigmoid MKLDNNHardSigmoid_ MKLDNNHardSwish
MKLDNNHardSwish_ MKLDNNHardTanh MKLDNNHardTanh_ MKLDNNLayerNorm MKLDNNLayerNorm_ MKLDNNScalarMul MKLDNNScalarMul_
MMBatchSide MMTreeReduce name nbytes NumToTensor RaiseException rangelist ReductionSizes requires_grad StringIndex
tolist TupleIndex TupleUnpack type unchecked_cast unchecked_unwrap_optional Uninitialized VarConcat VarStack
"""

_QUANTIZED = """
add add_out add_relu add_relu_out add_scalar add_scalar_out add_scalar_relu add_scalar_relu_out batch_norm
batch_norm1d batch_norm1d_relu batch_norm2d batch_norm2d_relu batch_norm3d batch_norm3d_relu batch_norm_relu cat
cat_out cat_relu cat_relu_out celu clamp conv1d conv1d_dynamic conv1d_prepack conv1d_relu conv1d_unpack conv2d
conv2d_add conv2d_add_relu conv2d_dilation conv2d_dynamic conv2d_groups conv2d_output_padding conv2d_padding
conv2d_prepack conv2d_relu conv2d_stride conv2d_transpose conv2d_unpack conv2d_unpack_sizes conv3d conv3d_dilation
conv3d_dynamic conv3d_groups conv3d_output_padding conv3d_padding conv3d_prepack conv3d_relu conv3d_stride
conv3d_transpose conv3d_unpack conv_prepack conv_transpose1d conv_transpose1d_dynamic conv_transpose1d_prepack
conv_transpose1d_unpack conv_transpose2d conv_transpose2d_dilation conv_transpose2d_dynamic conv_transpose2d_groups
conv_transpose2d_output_padding conv_transpose2d_padding conv_transpose2d_prepack conv_transpose2d_stride
conv_transpose2d_transpose conv_transpose2d_unpack conv_transpose3d conv_transpose3d_dilation
conv_transpose3d_dynamic conv_transpose3d_groups conv_transpose3d_output_padding conv_transpose3d_padding
conv_transpose3d_prepack conv_transpose3d_stride conv_transpose3d_transpose conv_transpose3d_unpack conv_unpack
dropout elu embedding_4bit embedding_bag_2bit_prepack embedding_bag_2bit_prepack_with_rowwise_min_max
embedding_bag_2bit_rowwise_offsets embedding_bag_2bit_unpack embedding_bag_4bit embedding_bag_4bit_prepack
embedding_bag_4bit_prepack_with_rowwise_min_max embedding_bag_4bit_rowwise_offsets embedding_bag_4bit_unpack
embedding_bag_byte embedding_bag_byte_prepack embedding_bag_byte_prepack_with_rowwise_min_max
embedding_bag_byte_rowwise_offsets embedding_bag_byte_unpack embedding_bag_prepack embedding_bag_unpack
embedding_byte group_norm hardswish instance_norm int4mm_packed_weight_cpu layer_norm leaky_relu linear
linear_dynamic linear_dynamic_fp16 linear_dynamic_fp16_unpacked_weight linear_leaky_relu linear_prepack
linear_prepack_fp16 linear_prepack_fp16_legacy linear_prepack_legacy linear_relu linear_relu_dynamic
linear_relu_dynamic_fp16 linear_tanh linear_unpack linear_unpack_fp16 linear_with_input_q_dq_qweight_dq_output_fp32
linear_with_input_q_dq_qweight_dq_relu_output_fp32 make_quantized_cell_params make_quantized_cell_params_dynamic
make_quantized_cell_params_fp16 matmul max_pool1d max_pool2d mul mul_out mul_relu mul_relu_out mul_scalar
mul_scalar_out mul_scalar_relu mul_scalar_relu_out prelu quantized_gru_cell_dynamic quantized_lstm_cell_dynamic
quantized_rnn_relu_cell_dynamic quantized_rnn_tanh_cell_dynamic relu6 sigmoid softmax threshold
"""

_QUANTIZED_PRIVATE = """
add conv2d conv2d_prepack conv2d_relu conv3d conv3d_prepack conv3d_relu conv_transpose1d conv_transpose1d_prepack
conv_transpose2d conv_transpose2d_prepack conv_transpose3d_prepack linear linear_dynamic linear_prepack
linear_prepack_fp16 linear_prepack_fp16_legacy linear_prepack_legacy wrapped_fbgemm_linear_fp16_weight
wrapped_fbgemm_pack_gemm_matrix_fp16 _wrapped_linear_prepack wrapped_quantized_linear
_wrapped_quantized_linear_prepacked
"""

_SPARSE = """
qlinear qlinear_dynamic qlinear_prepack qlinear_relu qlinear_relu_dynamic qlinear_unpack
"""

OPERATORS = {
    "aten": frozenset(_ATEN.split()),
    "prim": frozenset(_PRIM.split()),
    "quantized": frozenset(_QUANTIZED.split()),
    "_quantized": frozenset(_QUANTIZED_PRIVATE.split()),
    "quantization": frozenset(("_Bfloat16QuantizedToFloat", "_FloatToBfloat16Quantized")),
    "sparse": frozenset(_SPARSE.split()),
}
"""The names of the operators that have no effects, by namespace."""

EFFECTS: dict[str, frozenset[str]] = {
    "aten": frozenset(
        (
            "_cufft_clear_plan_cache", "_cufft_set_plan_cache_max_size", "_foobar", "_pin_memory", "_print",
            "_test_warn_in_autograd", "from_file", "pin_memory", "record_stream",
        )
    ),
    "higher_order": frozenset(("print",)),
    "inductor": frozenset(("_alloc_from_pool", "_reinterpret_tensor", "resize_storage_bytes_")),
    "mkldnn": frozenset(("data_ptr",)),
    **dict.fromkeys(
        ("_test", "debugprims", "profiler", "static_runtime", "symm_mem"), frozenset[str]()
    ),
}  # fmt: skip
"""Of the operators that torch's dispatcher knows, those that act on something else than tensors, by namespace; all of
a namespace where none is named. An exported program may use the others, for it is looked at before it is run."""

CLASSES = frozenset(
    f"__torch__.torch.classes.{name}"
    for name in (
        "quantized.Conv2dPackedParamsBase",
        "quantized.Conv3dPackedParamsBase",
        "quantized.EmbeddingPackedParamsBase",
        "quantized.LinearPackedParamsBase",
        "rnn.CellParamsBase",
        "sparse.LinearPackedParamsBase",
    )
)
"""The classes of torch's own, written in C++, that hold packed weights. Others open files, compile or communicate."""
