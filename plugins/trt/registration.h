/* Registers the creator with a TensorRT that is already in the process when the library is loaded.
 *
 * A plain dlopen (polygraphy's and trtexec's --plugins) calls none of our functions, so a
 * constructor must register. TensorRT's own loadLibrary registers what getCreators returns, so
 * that it must find the creator unregistered.
 *
 * A TensorRT that is loaded after this library, or one whose registry has a shape that versions.h
 * does not know (12.0 and later), is left alone: use load_library there.
 */
#ifndef MMCOMPILE_TRT_REGISTRATION_H
#define MMCOMPILE_TRT_REGISTRATION_H

namespace mmcompile::trt {

/* Takes back what the constructor registered: from here on the caller of getCreators is in
 * charge. In a process with several TensorRTs it is in charge of all of them. */
void withdraw_registration() noexcept;

}  // namespace mmcompile::trt

#endif
