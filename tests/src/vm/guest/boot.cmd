# Debian's U-Boot for QEMU has no environment of its own on the disk, and neither saveenv nor setexpr. So this script
# reads and writes the two copies as a U-Boot with CONFIG_SYS_REDUNDAND_ENVIRONMENT does: 4 bytes CRC-32, 1 byte flags,
# variables. crc32 stores its sum in big endian, the environment has it in little endian.
setenv sum 'crc32 ${data} 0x3ffb 0x2200000; cp.b 0x2200000 0x2200013 1; cp.b 0x2200001 0x2200012 1; cp.b 0x2200002 0x2200011 1; cp.b 0x2200003 0x2200010 1'
part start virtio 0 env1 place1
part start virtio 0 env2 place2
virtio read 0x2000000 ${place1} 0x20
virtio read 0x2100000 ${place2} 0x20
setenv whole1 0; setenv whole2 0; setenv use 0
setenv data 0x2000005; run sum
if cmp.b 0x2200010 0x2000000 4; then setenv whole1 1; fi
setenv data 0x2100005; run sum
if cmp.b 0x2200010 0x2100000 4; then setenv whole2 1; fi
# Of two whole copies the one with the higher flags counts; 0 comes after ff.
if test ${whole1} = 1; then setenv use 1; fi
if test ${whole2} = 1; then
  if test ${use} = 0; then setenv use 2
  elif itest.b *0x2000004 == ff; then if itest.b *0x2100004 == 0; then setenv use 2; fi
  elif itest.b *0x2100004 == ff; then if itest.b *0x2000004 != 0; then setenv use 2; fi
  elif itest.b *0x2100004 > *0x2000004; then setenv use 2
  fi
fi
setenv BOOT_ORDER; setenv BOOT_A_LEFT; setenv BOOT_B_LEFT
if test ${use} = 1; then cp.b 0x2000004 0x2400000 1; env import -b 0x2000005 0x3ffb; fi
if test ${use} = 2; then cp.b 0x2100004 0x2400000 1; env import -b 0x2100005 0x3ffb; fi

# From here on the script of fwagent/README.md, with what this U-Boot lacks spelled out.
setenv minus_one 'setenv was; for n in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do if test x${n} = x${left}; then setenv less ${was}; fi; setenv was ${n}; done'
setenv slot ""; setenv last ""
for s in "${BOOT_ORDER}"; do
  setenv last "${s}"
  if test -n "${slot}"; then
    true
  elif test "x${s}" = "xA"; then
    if test 0x${BOOT_A_LEFT} -gt 0; then setenv left ${BOOT_A_LEFT}; run minus_one; setenv BOOT_A_LEFT ${less}; setenv slot A; fi
  elif test "x${s}" = "xB"; then
    if test 0x${BOOT_B_LEFT} -gt 0; then setenv left ${BOOT_B_LEFT}; run minus_one; setenv BOOT_B_LEFT ${less}; setenv slot B; fi
  fi
done
if test -n "${slot}"; then
  setenv next 0; setenv was 0
  for n in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do for m in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do
    if test ${was} = 1; then setenv next ${n}${m}; setenv was 0; fi
    if itest.b *0x2400000 == ${n}${m}; then setenv was 1; fi
  done; done
  mw.b 0x2300000 0 0x4000
  env export -b -s 0x3ffb 0x2300005 BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT
  mw.b 0x2300004 ${next} 1
  setenv data 0x2300005; run sum
  cp.b 0x2200010 0x2300000 4
  if test ${use} = 1; then virtio write 0x2300000 ${place2} 0x20; else virtio write 0x2300000 ${place1} 0x20; fi
else
  setenv slot "${last}"
fi
echo "fwvm loader ${slot} of ${BOOT_ORDER}"
setenv bootargs "root=PARTLABEL=root${slot} fwagent.slot=${slot} @CMDLINE@"
if test "${slot}" = A; then setenv part 5; else setenv part 6; fi
load virtio 0:${part} 0x1000000 /kernel/vmlinuz
setenv size ${filesize}
load virtio 0:${part} 0x8000000 /kernel/initramfs
zboot 0x1000000 ${size} 0x8000000 ${filesize}
# Only what cannot be booted comes here; the next boot takes the next attempt or slot.
reset
