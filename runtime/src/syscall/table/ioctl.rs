//! Known ioctl requests: terminals, descriptors, sockets, block devices. What is missing here comes home.
//!
//! Requests are listed one by one, also where the number encodes a size: the encoding lies for some drivers, and a
//! structure may hold pointers. Never here: TIOCSTI and TIOCLINUX (typing into the user's terminal), FIFREEZE and the
//! like.

use super::kinds::{Arg, Arg::*, Request, Size::*};

const fn r(value: u32, name: &'static str, arg: Arg) -> Request {
    Request { value, name, arg }
}

/// struct termios, termio, termios2, winsize, ifreq.
const TERMIOS: u32 = 36;
const TERMIO: u32 = 18;
const TERMIOS2: u32 = 44;
const WINSIZE: u32 = 8;
const IFREQ: Arg = InOut(Fixed(40));
const INT_OUT: Arg = Out(Fixed(4));
const INT_IN: Arg = In(Fixed(4));

/// ioctl, by request.
pub(super) const REQUESTS: &[Request] = &[
    // Terminals.
    r(0x5401, "TCGETS", Out(Fixed(TERMIOS))),
    r(0x5402, "TCSETS", In(Fixed(TERMIOS))),
    r(0x5403, "TCSETSW", In(Fixed(TERMIOS))),
    r(0x5404, "TCSETSF", In(Fixed(TERMIOS))),
    r(0x5405, "TCGETA", Out(Fixed(TERMIO))),
    r(0x5406, "TCSETA", In(Fixed(TERMIO))),
    r(0x5407, "TCSETAW", In(Fixed(TERMIO))),
    r(0x5408, "TCSETAF", In(Fixed(TERMIO))),
    r(0x5409, "TCSBRK", Int),
    r(0x540a, "TCXONC", Int),
    r(0x540b, "TCFLSH", Int),
    r(0x540c, "TIOCEXCL", Int),
    r(0x540d, "TIOCNXCL", Int),
    r(0x540e, "TIOCSCTTY", Int),
    r(0x540f, "TIOCGPGRP", INT_OUT),
    r(0x5410, "TIOCSPGRP", INT_IN),
    r(0x5411, "TIOCOUTQ", INT_OUT),
    r(0x5413, "TIOCGWINSZ", Out(Fixed(WINSIZE))),
    r(0x5414, "TIOCSWINSZ", In(Fixed(WINSIZE))),
    r(0x5415, "TIOCMGET", INT_OUT),
    r(0x5416, "TIOCMBIS", INT_IN),
    r(0x5417, "TIOCMBIC", INT_IN),
    r(0x5418, "TIOCMSET", INT_IN),
    r(0x5419, "TIOCGSOFTCAR", INT_OUT),
    r(0x541a, "TIOCSSOFTCAR", INT_IN),
    r(0x541b, "FIONREAD", INT_OUT),
    r(0x541e, "TIOCGSERIAL", Out(Fixed(72))),
    r(0x5420, "TIOCPKT", INT_IN),
    r(0x5421, "FIONBIO", INT_IN),
    r(0x5422, "TIOCNOTTY", Int),
    r(0x5423, "TIOCSETD", INT_IN),
    r(0x5424, "TIOCGETD", INT_OUT),
    r(0x5425, "TCSBRKP", Int),
    r(0x5427, "TIOCSBRK", Int),
    r(0x5428, "TIOCCBRK", Int),
    r(0x5429, "TIOCGSID", INT_OUT),
    r(0x802c_542a, "TCGETS2", Out(Fixed(TERMIOS2))),
    r(0x402c_542b, "TCSETS2", In(Fixed(TERMIOS2))),
    r(0x402c_542c, "TCSETSW2", In(Fixed(TERMIOS2))),
    r(0x402c_542d, "TCSETSF2", In(Fixed(TERMIOS2))),
    r(0x8004_5430, "TIOCGPTN", INT_OUT),
    r(0x4004_5431, "TIOCSPTLCK", INT_IN),
    r(0x8004_5432, "TIOCGDEV", INT_OUT),
    r(0x4004_5436, "TIOCSIG", Int),
    r(0x8004_5438, "TIOCGPKT", INT_OUT),
    r(0x8004_5439, "TIOCGPTLCK", INT_OUT),
    r(0x8004_5440, "TIOCGEXCL", INT_OUT),
    r(0x5441, "TIOCGPTPEER", Int),
    r(0x545d, "TIOCGICOUNT", Out(Fixed(80))),
    // Every descriptor.
    r(0x5450, "FIONCLEX", Int),
    r(0x5451, "FIOCLEX", Int),
    r(0x5452, "FIOASYNC", INT_IN),
    r(0x5460, "FIOQSIZE", Out(Fixed(8))),
    r(0x8901, "FIOSETOWN", INT_IN),
    r(0x8903, "FIOGETOWN", INT_OUT),
    // Files.
    r(1, "FIBMAP", InOut(Fixed(4))),
    r(2, "FIGETBSZ", INT_OUT),
    r(0x4004_9409, "FICLONE", Int),
    r(0x4020_940d, "FICLONERANGE", In(Fixed(32))),
    r(0x8008_6601, "FS_IOC_GETFLAGS", Out(Fixed(4))),
    r(0x4008_6602, "FS_IOC_SETFLAGS", In(Fixed(4))),
    r(0x801c_581f, "FS_IOC_FSGETXATTR", Out(Fixed(28))),
    r(0x401c_5820, "FS_IOC_FSSETXATTR", In(Fixed(28))),
    // Sockets and interfaces; requests with an ifreq that holds no pointer.
    r(0x8902, "SIOCSPGRP", INT_IN),
    r(0x8904, "SIOCGPGRP", INT_OUT),
    r(0x8905, "SIOCATMARK", INT_OUT),
    r(0x8906, "SIOCGSTAMP", Out(Fixed(16))),
    r(0x8907, "SIOCGSTAMPNS", Out(Fixed(16))),
    r(0x8910, "SIOCGIFNAME", IFREQ),
    r(0x8913, "SIOCGIFFLAGS", IFREQ),
    r(0x8915, "SIOCGIFADDR", IFREQ),
    r(0x8917, "SIOCGIFDSTADDR", IFREQ),
    r(0x8919, "SIOCGIFBRDADDR", IFREQ),
    r(0x891b, "SIOCGIFNETMASK", IFREQ),
    r(0x891d, "SIOCGIFMETRIC", IFREQ),
    r(0x8921, "SIOCGIFMTU", IFREQ),
    r(0x8927, "SIOCGIFHWADDR", IFREQ),
    r(0x8933, "SIOCGIFINDEX", IFREQ),
    r(0x8942, "SIOCGIFTXQLEN", IFREQ),
    r(0x8970, "SIOCGIFMAP", IFREQ),
    // Block devices.
    r(0x125e, "BLKROGET", INT_OUT),
    r(0x1260, "BLKGETSIZE", Out(Fixed(8))),
    r(0x1261, "BLKFLSBUF", Int),
    r(0x1263, "BLKRAGET", Out(Fixed(8))),
    r(0x1268, "BLKSSZGET", INT_OUT),
    r(0x1278, "BLKIOMIN", INT_OUT),
    r(0x1279, "BLKIOOPT", INT_OUT),
    r(0x127a, "BLKALIGNOFF", INT_OUT),
    r(0x127b, "BLKPBSZGET", INT_OUT),
    r(0x127e, "BLKROTATIONAL", Out(Fixed(2))),
    r(0x8008_1270, "BLKBSZGET", INT_OUT),
    r(0x8008_1272, "BLKGETSIZE64", Out(Fixed(8))),
    // Random device, loop and tap devices ask; setting comes home.
    r(0x8004_5200, "RNDGETENTCNT", INT_OUT),
];
