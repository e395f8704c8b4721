# SPDX-License-Identifier: Apache-2.0
# Runs on the device, under any POSIX sh (busybox ash, dash, bash); see device_shell.py for the protocol.
# $1: nonce that marks our lines, $2: scratch directory, $3: checksum tool; a line before this sets them. Comments and
# indentation are not sent.
_N=$1; _T=$2; _ck=$3; _l=0; _f=0; _x=0; _P=; _m=; _v=; _I=; _old=; _gone=; _in=3000
_U=$(umask)
umask 077
exec 2>/dev/null
trap '_I=1; echo "@$_N I"' 2
trap : 3
trap 'rm -rf "$_T"; trap - 0; exit 0' 0 1 15
_has(){ command -v "$1" >/dev/null; }
# The fingerprint of file $1 in _c: "SUM.SIZE" of cksum, or the digest of another tool. One process, for speed; so
# is the fingerprint of three files with the sizes of the second and third.
if [ $_ck = cksum ]; then
  _k(){ set -- $(cksum <"$1"); _c=$1.$2; }
  _k3(){ set -- $(cksum "$1" "$2" "$3"); _c="$1.$2 $4.$5 $5 $7.$8 $8"; }
else
  _k(){ set -- $($_ck <"$1"); _c=$1; }
  _k3(){
    if [ -s "$2" ] || [ -s "$3" ]; then set -- $($_ck "$1" "$2" "$3") $(wc -c "$2" "$3"); _c="$1 $3 $7 $5 $9"
    else set -- $($_ck "$1" "$2" "$3"); _c="$1 $3 0 $5 0"; fi
  }
fi
# Encoding of what goes out, decoding of what comes in (both stdin to stdout).
_od(){ od -An -v -tx1 | tr -d ' '; }
_oct(){ while read -r _q || [ "$_q" ]; do printf "$_q"; done; }
if _has base64; then _E=base64; _dec='base64 -d'; _c1=b64; else _E=_od; _dec=_oct; _c1=hex; fi
for _dig in sha256sum sha512sum sha1sum md5sum cksum none; do _has $_dig && break; done
_gz=none; _has gzip && _gz=gzip
_hello(){ _v="$_ck $_c1 $_dig $_gz $(id -u)"; }
# The reply to the last request; with _m the request was a command with output in files.
_p(){
  echo "$_l $_v" >$_T/r
  if [ "$_m" ]; then
    _k3 $_T/r $_T/o.$_m $_T/e.$_m
    echo "@$_N R $_l $_c $_v"
    set -- $_c
    [ $3 -gt 0 ] && [ $3 -le $_in ] && { echo "@$_N o"; $_E <$_T/o.$_m; }
    [ $5 -gt 0 ] && [ $5 -le $_in ] && { echo "@$_N e"; $_E <$_T/e.$_m; }
    echo "@$_N Z $_l"
  else
    _k $_T/r
    echo "@$_N R $_l $_c $_v"
  fi
}
# Run a command: $1 text, $2 file for stdin, $3 shell. Files are new for every command: something left in the
# background may go on writing to the old ones.
_open(){
  [ "$_old" ] && { : >$_T/o.$_old; : >$_T/e.$_old; _gone="$_gone $_T/o.$_old $_T/e.$_old"; }
  _m=$_l; _old=$_l
}
_run(){ _open; (umask $_U; exec "$3" -c "$1") <"$2" >$_T/o.$_m 2>$_T/e.$_m; _v=$?; }
_runf(){ _open; (umask $_U; exec "$3" $_T/c) <"$2" >$_T/o.$_m 2>$_T/e.$_m; _v=$?; }
# Internal requests: output and errors of "$@" in files m (both), status as value.
_do(){ "$@" >$_T/m 2>&1; _v=$?; }
_msg(){ _v="$(tail -c 300 $_T/m | tr '\n\r' '  ')"; }
# Receive: $1 block number, $2 its fingerprint. Lines "#number:data" up to a line that begins with ':'.
_b(){
  sed -n -e "w $_T/u.$1" -e '/^:/q' -e 's/^#[0-9]*://p' | $_dec >$_T/d.$1
  _chk $1 $2
}
_chk(){
  _k $_T/d.$1
  if [ "$_c" != "$2" ]; then : >$_T/d.$1; _v="$_x bad"; return; fi
  : >$_T/u.$1
  while [ -s $_T/d.$_x ]; do
    cat $_T/d.$_x >>"$_P" 2>$_T/m || { _v="$_x full"; return; }
    : >$_T/d.$_x
    _x=$((_x+1))
  done
  _v="$_x ok"
}
# Which lines of block $1 arrived, one checksum each; the newest of a number counts. $2: how many there are.
_y(){
  [ -f $_T/u.$1 ] || : >$_T/u.$1
  while IFS= read -r _q; do
    case $_q in '#'*:*)
      _n=${_q%%:*}; _n=${_n#?}
      case $_n in *[!0-9]*) ;; ????) [ $_n -lt $2 ] && printf %s "${_q#*:}" >$_T/l.$_n;; esac;;
    esac
  done <$_T/u.$1
  $_ck $_T/l.*
  _v=ok
}
_w(){ sed -n -e "w $_T/u.$1" -e '/^:/q'; _y $1 $2; }
_j(){ cat $_T/l.* | $_dec >$_T/d.$1; _chk $1 $2; }
_begin(){ rm -f $_T/u.* $_T/d.* $_T/l.*; _P=$1; _x=$2; _v=ok; }
# Send file $1, blocks $2 to $3 of $4 bytes; $5: 1 with the data, 0 checksums only.
_s(){
  _q=$2
  while [ $_q -le $3 ] && [ ! "$_I" ]; do
    dd if="$1" of=$_T/t bs=$4 skip=$_q count=1
    _k $_T/t
    echo "@$_N C $_q $4 $_c"
    [ $5 = 0 ] || $_E <$_T/t | grep -n ''
    _q=$((_q+1))
  done
  _v=ok
}
echo "@$_N H"
while :; do
  if read -r _i _w _b; then _f=0; else _f=$((_f+1)); [ $_f -lt 20 ] || exit 0; continue; fi
  case $_i in
    quit) exit 0;;
    '?') _p; continue;;
    ''|*[!0-9]*) continue;;
  esac
  printf '%s %s' $_i "$_b" >$_T/q
  _k $_T/q
  if [ "$_c" != "$_w" ]; then echo "@$_N N $_i"; continue; fi
  if [ $_i -gt $_l ]; then
    _l=$_i; _m=; _v=; _I=
    echo "@$_N A $_i"
    eval "$_b"
  fi
  _p
  [ ${#_gone} -gt 900 ] && { rm -f $_gone; _gone=; }
done
