/* cpu_real.h - the number type of the CPU's kernels, and the names of their two builds.
 *
 * Users run real = float. -DVQ_CPU_F64 compiles the same sources with real = double under names
 * that end in _f64, so that one test program can link both. */
#pragma once
#include "tensor.h"

#ifdef VQ_CPU_F64
typedef double real;
#define VQ_REAL VQ_F64
#define vq_cpu_open vq_cpu_open_f64
#define vq_cpu_close vq_cpu_close_f64
#define vq_cpu_scratch_peak vq_cpu_scratch_peak_f64
#define vq_cpu_trim vq_cpu_trim_f64
#define vq_cpu_thread_count vq_cpu_thread_count_f64
#define vq_cpu_slab vq_cpu_slab_f64
#define vq_cpu_to_real vq_cpu_to_real_f64
#define vq_cpu_blas_gemm vq_cpu_blas_gemm_f64
#define vq_cpu_gemm vq_cpu_gemm_f64
#define vq_cpu_syrk vq_cpu_syrk_f64
#define vq_cpu_moments vq_cpu_moments_f64
#define vq_cpu_inverse_factor vq_cpu_inverse_factor_f64
#define vq_cpu_embed vq_cpu_embed_f64
#define vq_cpu_bias_add vq_cpu_bias_add_f64
#define vq_cpu_add vq_cpu_add_f64
#define vq_cpu_rmsnorm_fwd vq_cpu_rmsnorm_fwd_f64
#define vq_cpu_rmsnorm_bwd vq_cpu_rmsnorm_bwd_f64
#define vq_cpu_layernorm_fwd vq_cpu_layernorm_fwd_f64
#define vq_cpu_layernorm_bwd vq_cpu_layernorm_bwd_f64
#define vq_cpu_rope vq_cpu_rope_f64
#define vq_cpu_attention_fwd vq_cpu_attention_fwd_f64
#define vq_cpu_attention_bwd vq_cpu_attention_bwd_f64
#define vq_cpu_silu_gate_fwd vq_cpu_silu_gate_fwd_f64
#define vq_cpu_silu_gate_bwd vq_cpu_silu_gate_bwd_f64
#define vq_cpu_relu_fwd vq_cpu_relu_fwd_f64
#define vq_cpu_relu_bwd vq_cpu_relu_bwd_f64
#define vq_cpu_round_fwd vq_cpu_round_fwd_f64
#define vq_cpu_round_bwd vq_cpu_round_bwd_f64
#define vq_cpu_round_reg vq_cpu_round_reg_f64
#define vq_cpu_round_scale_fwd vq_cpu_round_scale_fwd_f64
#define vq_cpu_round_scale_bwd vq_cpu_round_scale_bwd_f64
#define vq_cpu_round_scale vq_cpu_round_scale_f64
#define vq_cpu_arrange vq_cpu_arrange_f64
#define vq_cpu_grid_minmax vq_cpu_grid_minmax_f64
#define vq_cpu_grid_search vq_cpu_grid_search_f64
#define vq_cpu_grid_split vq_cpu_grid_split_f64
#define vq_cpu_grid_round vq_cpu_grid_round_f64
#define vq_cpu_grid_of_range vq_cpu_grid_of_range_f64
#define vq_cpu_grid_of_weights vq_cpu_grid_of_weights_f64
#define vq_cpu_grid_value vq_cpu_grid_value_f64
#define vq_cpu_gptq_sweep vq_cpu_gptq_sweep_f64
#define vq_cpu_kmeans_assign vq_cpu_kmeans_assign_f64
#define vq_cpu_kmeans_update vq_cpu_kmeans_update_f64
#define vq_cpu_head_kd vq_cpu_head_kd_f64
#define vq_cpu_head_nll vq_cpu_head_nll_f64
#define vq_cpu_mse vq_cpu_mse_f64
#define vq_cpu_adam_step vq_cpu_adam_step_f64
#define vq_cpu_norm2 vq_cpu_norm2_f64
#else
typedef float real;
#define VQ_REAL VQ_F32
#endif
