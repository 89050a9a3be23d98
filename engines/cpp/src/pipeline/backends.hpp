// The backends by their names.
#pragma once

#include <memory>

#include "bundle/bundle.hpp"
#include "session/session.hpp"
#include "star/settings.hpp"

namespace star {

// Throws SettingsError for options that no bundle can be opened with.
void check_options(const Options& options);

// Loads a bundle's graphs. Throws BundleError if the backend cannot run them, PlatformError if this machine
// lacks what it needs.
std::unique_ptr<Session> open_session(const Bundle& bundle, const Options& options);

}  // namespace star
