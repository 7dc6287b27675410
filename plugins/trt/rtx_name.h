/* TensorRT-RTX under the name that its own parser looks for.
 *
 * On the first plugin node the parser opens "libtensorrt_rtx.so". NVIDIA's wheels hold only
 * libtensorrt_rtx.so.1; where the former is not found, the process is terminated. A link in a
 * folder of ours would not help: the loader knows loaded libraries by the name inside them
 * (SONAME). Nor would a copy: the parser needs the library that is loaded already.
 */
#ifndef MMCOMPILE_TRT_RTX_NAME_H
#define MMCOMPILE_TRT_RTX_NAME_H

namespace mmcompile::trt {

/* Where TensorRT-RTX is in the process and the name is not: loads a library of that name, without
 * code, which needs TensorRT-RTX. Whoever opens the name from then on is given the two. */
void provide_rtx_name() noexcept;

}  // namespace mmcompile::trt

#endif
