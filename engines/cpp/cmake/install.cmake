# What `cmake --install` puts where find_package(star-export) finds it.
include(CMakePackageConfigHelpers)

set(CONFIG_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/star-export)
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS star_run)
set(NOTICES ${CMAKE_INSTALL_DOCDIR})
install(FILES ../../LICENSE DESTINATION ${NOTICES})
install(FILES src/image/NOTICE DESTINATION ${NOTICES} RENAME NOTICE-image)
install(FILES src/sampling/NOTICE DESTINATION ${NOTICES} RENAME NOTICE-sampling)
# Sets of their own: who links the shared library needs none of what the static one is linked with.
foreach(kind shared static)
  set(library star)
  if(kind STREQUAL static)
    set(library star_static)
  endif()
  install(TARGETS ${library} EXPORT star-export-${kind})
  install(EXPORT star-export-${kind} NAMESPACE star-export:: DESTINATION ${CONFIG_FOLDER})
endforeach()
configure_package_config_file(cmake/star-export-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/star-export-config.cmake
                              INSTALL_DESTINATION ${CONFIG_FOLDER})
write_basic_package_version_file(star-export-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/star-export-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/star-export-config-version.cmake DESTINATION ${CONFIG_FOLDER})
