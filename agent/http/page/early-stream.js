/** Opens the stream of the view in the address while the other modules load. The agent encodes the state of the host meanwhile. */

import { openEarly } from "./event-stream.js";
import { parseHash, streamUrl } from "./view-address.js";

openEarly(streamUrl(parseHash(location.hash)?.path ?? []));
