/* The kernel library: quantized linear layers on a CUDA stream. C ABI; no TensorRT, no torch.
 *
 *     MmcLinear* linear;                                  what a layer is: host memory, immutable
 *     mmc_linear_create(&layer, &linear, &error);
 *     mmc_device_open(ordinal, &device, &error);          once per GPU: loads kernels
 *     bytes = mmc_workspace_bytes(linear, &device, rows);
 *     mmc_linear_run(linear, &device, &arguments, &error);
 *
 * mmc_linear_run enqueues two kernels and nothing else: it allocates nothing, waits for nothing
 * and sets no attribute, so a CUDA graph may capture it. All functions are thread-safe. One
 * workspace serves one stream at a time.
 *
 * Two libraries implement this header from the same kernel source: libmmcompile_kernels on GPUs,
 * and libmmcompile_emulated, for tests, on the CPU (its stream is ignored, its memory is the
 * host's, and its calls return when the work is done).
 *
 * What is computed: docs/spec.md. How: docs/kernels.md.
 */
#ifndef MMCOMPILE_KERNELS_H
#define MMCOMPILE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define MMC_LAYOUT_VERSION 2 /* of packed weights, docs/spec.md section 6 */
#define MMC_MAX_SEGMENTS 32
#define MMC_MAX_ROWS 0x7fffffffLL

typedef enum MmcStatus {
  MMC_OK = 0,
  MMC_INVALID_ARGUMENT = 1,
  MMC_UNSUPPORTED = 2, /* a layer or a GPU that has no kernel */
  MMC_WORKSPACE_TOO_SMALL = 3,
  MMC_CUDA_ERROR = 4,
  MMC_OUT_OF_MEMORY = 5 /* of the host, in mmc_linear_create */
} MmcStatus;

/* Filled by the function that fails: one sentence, terminated. NULL where an error is wanted is
 * allowed. */
typedef struct MmcError {
  char text[512];
} MmcError;

typedef enum MmcType { MMC_FLOAT32 = 0, MMC_FLOAT16 = 1, MMC_BFLOAT16 = 2 } MmcType;

/* A run of ordered channels; format ids and thresholds as in docs/spec.md, sections 2 and 3. */
typedef struct MmcSegment {
  int32_t channels; /* a positive multiple of 32 */
  int32_t act_format;
  int32_t weight_format;
  float act_threshold; /* in [1, 2] */
} MmcSegment;

typedef struct MmcLayer {
  int64_t in_channels;  /* K of x */
  int64_t out_channels; /* N */
  const MmcSegment* segments;
  int32_t segment_count;
  float act_tensor_scale; /* of NVFP4 segments: powers of two in 2^-100..2^100 */
  float weight_tensor_scale;
} MmcLayer;

typedef struct MmcLinear MmcLinear;

/* Checks a layer and computes its layout; needs no GPU. mmc_linear_destroy(NULL) does nothing. */
MmcStatus mmc_linear_create(const MmcLayer* layer, MmcLinear** linear, MmcError* error);
void mmc_linear_destroy(MmcLinear* linear);

/* The layout of a layer's constants and of its quantized activations. */
typedef struct MmcLinearInfo {
  int64_t padded_channels;    /* K_pad: int32 order[K_pad] */
  int64_t weight_row_bytes;   /* int8 weight[N, weight_row_bytes] */
  int64_t weight_scale_words; /* int8 scales[weight_scale_words, N, 4] */
  int64_t act_row_bytes;      /* codes of a quantized row: 4-bit codes, or E4M3 bytes */
  int64_t act_scale_words;    /* 4-byte words of scales of a quantized row */
} MmcLinearInfo;

void mmc_linear_info(const MmcLinear* linear, MmcLinearInfo* info);

typedef struct MmcDevice {
  int32_t ordinal;
  int32_t architecture; /* compute capability: 80, 90, 120, ... */
  int32_t multiprocessors;
} MmcDevice;

/* Loads the kernels on a GPU and sets their attributes; MMC_UNSUPPORTED where there are none for
 * it. They are loaded into the caller's current context where that is one of this GPU, else into
 * the GPU's primary context; the caller's context and device are as before. A program that runs
 * layers in several contexts opens the device in each. */
MmcStatus mmc_device_open(int32_t ordinal, MmcDevice* device, MmcError* error);

/* The largest GPU that the library was compiled for; needs no GPU. For plans that are made on
 * another machine: a workspace that suffices for it suffices for all that the library serves.
 * Nothing runs on it, and its ordinal is -1. */
void mmc_largest_device(MmcDevice* device);

/* Bytes of workspace, aligned to 256, that suffice for every tactic and every number of rows from
 * 0 to `rows`. */
size_t mmc_workspace_bytes(const MmcLinear* linear, const MmcDevice* device, int64_t rows);

/* A tactic is a tile shape of the GEMM, 1..mmc_tactic_count(device); 0 chooses by the shape. GPUs
 * without block-scaled instructions have fewer. */
int32_t mmc_tactic_count(const MmcDevice* device);
const char* mmc_tactic_name(int32_t tactic);
int32_t mmc_choose_tactic(const MmcLinear* linear, const MmcDevice* device, int64_t rows);
/* Writes what a tactic would launch ("decode16: 16 rows x 32 channels x 256 bytes of K, ..."),
 * terminated, and returns the length that it needs. */
size_t mmc_describe_launch(const MmcLinear* linear, const MmcDevice* device, int64_t rows,
                           int32_t tactic, char* text, size_t text_bytes);

typedef struct MmcArguments {
  int64_t rows; /* M, 0..MMC_MAX_ROWS */
  int32_t x_type;
  int32_t y_type;       /* also of the residual */
  const void* x;        /* [M, K]; x, residual and y at any element */
  const int32_t* order; /* [K_pad], 16-byte aligned; entries outside 0..K-1 mean zero */
  const void* weight;   /* 16-byte aligned */
  const void* scales;   /* [words, N, 4]; 4-byte aligned, as is bias */
  const float* bias;    /* [N], or NULL */
  const void* residual; /* [M, N], or NULL; may be y itself */
  void* y;              /* [M, N] */
  void* workspace;      /* 256-byte aligned; its contents are scratch */
  size_t workspace_bytes;
  void* stream; /* cudaStream_t */
  int32_t tactic;
} MmcArguments;

/* y = x · Wᵀ + bias + residual. rows = 0 is allowed and launches nothing. */
MmcStatus mmc_linear_run(const MmcLinear* linear, const MmcDevice* device,
                         const MmcArguments* arguments, MmcError* error);

/* The two halves of mmc_linear_run, for tests and benchmarks: x → workspace, workspace → y. Each
 * takes the same arguments. Where K is split, a GEMM uses the counters up: every mmc_gemm_run needs
 * an mmc_quantize_run before it. */
MmcStatus mmc_quantize_run(const MmcLinear* linear, const MmcDevice* device,
                           const MmcArguments* arguments, MmcError* error);
MmcStatus mmc_gemm_run(const MmcLinear* linear, const MmcDevice* device,
                       const MmcArguments* arguments, MmcError* error);

/* Where mmc_quantize_run leaves its results, as offsets in bytes from the workspace:
 * codes[rows, act_row_bytes] and scales[act_scale_words, rows, 4]. */
typedef struct MmcWorkspaceLayout {
  size_t codes;
  size_t scales;
  size_t counters; /* uint32, one per output tile; zeroed by mmc_quantize_run */
  size_t partials; /* fp32 tiles of a split K */
  size_t bytes;
} MmcWorkspaceLayout;

void mmc_workspace_layout(const MmcLinear* linear, const MmcDevice* device, int64_t rows,
                          MmcWorkspaceLayout* layout);

/* Architectures that the library was compiled for, e.g. "80 90 120f". */
const char* mmc_architectures(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
