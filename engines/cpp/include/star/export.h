// What the shared library shows.
#pragma once

#define STAR_API __attribute__((visibility("default")))
