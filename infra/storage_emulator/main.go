// Program storage_emulator serves gs:// on this machine, for tests: a fake of Google's store with what Beam needs of it.
//
//	storage_emulator -port 4443 -bucket mofi -credentials key.json -authority authority.pem
//
// The fake answers a batch call only where each part has a Content-ID, which Google's client for Python leaves out.
// It also has no tokens; without credentials, that client would look for some for half a minute in each process.
// A bucket named by -read-only refuses to be written.
//
// TensorFlow knows no other address than Google's. With -authority this program is also a proxy for https, as the variable
// https_proxy names one: it answers in place of Google, with a certificate of the authority that it writes there.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	port := flag.Int("port", 4443, "port of the local interface")
	bucket := flag.String("bucket", "mofi", "bucket to start with")
	readOnly := flag.String("read-only", "", "a further bucket, which refuses to be written")
	credentials := flag.String("credentials", "", "file for the key of a service account that this program accepts")
	authority := flag.String("authority", "", "file for the certificate that this program answers with as a proxy")
	flag.Parse()
	url := fmt.Sprintf("http://127.0.0.1:%d", *port)
	if *credentials != "" {
		if err := writeCredentials(*credentials, url+"/token"); err != nil {
			log.Fatal(err)
		}
	}
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, ExternalURL: url})
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{*bucket, *readOnly} {
		if name != "" {
			server.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: name})
		}
	}
	answers := handler(server.HTTPHandler(), *readOnly)
	if *authority != "" {
		if answers, err = withProxy(answers, *authority); err != nil {
			log.Fatal(err)
		}
	}
	log.Fatal(http.ListenAndServe(strings.TrimPrefix(url, "http://"), answers))
}

func handler(store http.Handler, readOnly string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/token"):
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token": "token", "token_type": "Bearer", "expires_in": 3600}`)
		case strings.HasSuffix(r.URL.Path, "/storageLayout"): // TensorFlow asks for it before it renames
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"hierarchicalNamespace": {"enabled": false}}`)
		case readOnly != "" && r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/b/"+readOnly+"/"):
			http.Error(w, `{"error": {"code": 403, "message": "the bucket may not be written"}}`, http.StatusForbidden)
		case strings.HasPrefix(r.URL.Path, "/batch/"):
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(withContentIDs(body)))
			store.ServeHTTP(w, r)
		default:
			store.ServeHTTP(w, r)
		}
	})
}

// tunnels are the connections that clients of the proxy asked for.
type tunnels struct {
	asked        chan net.Conn
	certificates *tls.Config
}

func (t tunnels) Accept() (net.Conn, error) { return plain{tls.Server(<-t.asked, t.certificates)}, nil }
func (t tunnels) Close() error              { return nil }
func (t tunnels) Addr() net.Addr            { return &net.TCPAddr{} }

// plain leaves out a header of TensorFlow's that means nothing, and that Go's server refuses.
type plain struct{ net.Conn }

func (p plain) Read(buffer []byte) (int, error) {
	count, err := p.Conn.Read(buffer)
	return copy(buffer, bytes.Replace(buffer[:count], []byte("Transfer-Encoding: identity\r\n"), nil, 1)), err
}

// withProxy lets answers answer for Google, too, with a certificate that it writes at path.
func withProxy(answers http.Handler, path string) (http.Handler, error) {
	certificate, err := writeCertificate(path)
	if err != nil {
		return nil, err
	}
	listener := tunnels{make(chan net.Conn), &tls.Config{Certificates: []tls.Certificate{certificate}}}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("X-Forwarded-Proto", "https") // for the addresses in the answers
		answers.ServeHTTP(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			answers.ServeHTTP(w, r)
			return
		}
		connection, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Fprint(connection, "HTTP/1.1 200 OK\r\n\r\n")
		listener.asked <- connection
	}), nil
}

// writeCertificate makes a certificate for Google's names, which is its own authority.
func writeCertificate(path string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	stated := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "storage_emulator"},
		DNSNames:              []string{"*.googleapis.com"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(1, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	signed, err := x509.CreateCertificate(rand.Reader, stated, stated, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})
	return tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key}, os.WriteFile(path, content, 0o600)
}

// withContentIDs numbers the parts of a batch call.
func withContentIDs(body []byte) []byte {
	const header = "Content-Type: application/http"
	parts := strings.Split(string(body), header)
	numbered := parts[0]
	for number, part := range parts[1:] {
		numbered += fmt.Sprintf("Content-ID: <%d>\r\n%s", number, header) + part
	}
	return []byte(numbered)
}

// writeCredentials makes the key of a service account whose tokens come from tokenURL.
func writeCredentials(path, tokenURL string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	content, err := json.Marshal(map[string]string{
		"type":           "service_account",
		"project_id":     "emulated",
		"private_key_id": "0",
		"private_key":    string(private),
		"client_email":   "test@emulated",
		"client_id":      "0",
		"token_uri":      tokenURL,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}
