#!/bin/sh
read -r fate </etc/fate
[ "$fate" = unhealthy ] || exit 0
echo "the radio is silent"
exit 7
