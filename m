<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="spdexport" tests="1" failures="0" errors="1">
  <testsuite name="spdexport.run" tests="1" failures="0" errors="1" skipped="0">
    <testcase classname="spdexport.run" name="result">
      <error message="No such option '--junit'." type="usage">No such option '--junit'.
where: python -m spdexport inspect
to do: It is an option of spdexport convert and of verify and of fold. See python -m spdexport inspect --help.</error>
    </testcase>
  </testsuite>
</testsuites>
